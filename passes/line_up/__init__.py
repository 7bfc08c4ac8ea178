"""Parents from different code bases, lined up node by node."""
