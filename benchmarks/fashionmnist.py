"""Fashion-MNIST: table 3 of the paper, and the rows that it lacks.

50,000 training images, the paper's small classifier; see ``small_images.py`` for the presets and ``methods.py`` for the
methods. One JSON file a (preset, method, seed) under --out; started again, finished ones are skipped, and several
processes share the work. ``tables.py`` and ``figures.py`` draw from the files.

    python benchmarks/fashionmnist.py --data-root data
    python benchmarks/fashionmnist.py --data-root data --preset paper_code --seeds 0
    python benchmarks/fashionmnist.py --data-root data --preset quick --seeds 0 --out quick
"""

from __future__ import annotations

from small_images import command

main = command("fashion-mnist")

if __name__ == "__main__":
    main()
