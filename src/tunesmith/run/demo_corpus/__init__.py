"""What the demo learns from: couplets, verses and prose that a lexicon and a grammar of ours compose by seed."""

from tunesmith.run.demo_corpus.corpus import INSTRUCTION, DemoData, write_demo_data
from tunesmith.run.demo_corpus.couplets import Couplet, generate_couplets

__all__ = ["INSTRUCTION", "Couplet", "DemoData", "generate_couplets", "write_demo_data"]
