"""What the check of a document may take."""

# Address space: whole documents of 100 MB need a quarter of it, the interpreter included.
MEMORY_BYTES = 512 << 20
# Of the processor, for a document. A whole one of 100 MB needs a tenth of a second.
CPU_S, CPU_S_PER_BYTE = 5, 1e-7
# By the clock, which a busy machine and a slow disk run down as well: for a place, for a process
# that starts in it, and for the document. The first two share one deadline. All three together
# leave some of the two minutes after which a step in the storage counts as hung to its fsyncs.
FREE_S, START_S, WALL_S = 20.0, 20.0, 60.0
