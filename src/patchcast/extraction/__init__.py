"""`patchcast embed`: from images to features of any form, and the files that hold them."""
