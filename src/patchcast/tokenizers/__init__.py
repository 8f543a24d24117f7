"""Tokenizers: what turns an image into codes, for methods that predict codes.

Import from the modules: `base.Tokenizer`, `palette.Palette`, `patches.PatchCodebook`, `files.load_tokenizer`.
"""
