"""`headrace tune`: finds the sizes that collect fastest on this machine, by measuring, and writes them as a config."""
