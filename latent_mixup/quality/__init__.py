"""Quality: reports on banks, self-tests of generators, and facts about both."""
