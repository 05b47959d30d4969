"""Verse: tones, rhymes, forms. No torch, no other part of the package."""
