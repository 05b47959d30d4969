"""Configurations of LLaMA-Factory, TRL and axolotl, made into recipes: a table of arguments and a few rules each."""
