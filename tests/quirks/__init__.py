"""What servers get wrong, and how it is mended.

proofs.py  how each line of the catalogue is known
"""
