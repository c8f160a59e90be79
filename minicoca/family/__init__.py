"""CoCa and its relatives: who they are, and one table of them, trained in the same time."""
