"""The use cases: plan, inspect, train, evaluate, compare, export, demo; and the run folder they write."""
