"""Tokenizers: from images to codes, for methods that predict codes.

Import from the modules: `base.Tokenizer`, `palette.Palette`, `patches.PatchCodebook`, `loading.load_tokenizer`.
"""
