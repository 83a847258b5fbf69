"""Images made from a Containerfile: reading the file, and (above the engine) carrying it out.

Start reading at ``instructions`` (what a file says, as values), ``parsing`` (from text to those values), ``stage`` (each of them carried out) and
``builder`` (all of it).
"""

from bulle.build.builder import Built, build
from bulle.build.options import BuildEvent, BuildOptions, Output, Secret, Step

__all__ = ["BuildEvent", "BuildOptions", "Built", "Output", "Secret", "Step", "build"]
