"""Images made from a Containerfile: reading the file, and (above the engine) carrying it out.

Start reading at ``instructions`` (what a file says, as values) and ``parsing`` (from text to those values).
"""
