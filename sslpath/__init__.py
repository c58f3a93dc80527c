"""Self-supervised similarity learning for digital pathology.

Data flows one way: slides, tiles, pairs, descriptors, retrieval. Import the module you need:
nothing heavy is loaded here, so ``import sslpath`` stays fast.
"""

__version__ = "0.1.0"
