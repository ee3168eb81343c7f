"""MNIST: table 2 of the paper, and the rows that it lacks.

50,000 training images, the paper's small classifier; see ``paper/`` for the presets, methods and files.

    python benchmarks/mnist.py --data-root data
    python benchmarks/mnist.py --data-root data --preset paper_code --seeds 0
    python benchmarks/mnist.py --data-root data --preset quick --seeds 0
"""

from __future__ import annotations

from paper.small_images import command

main = command("mnist")

if __name__ == "__main__":
    main()
