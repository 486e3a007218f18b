"""The eFax Enterprise API without I/O: what to send, and what an answer means."""
