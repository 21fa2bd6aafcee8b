"""The driver: identity, plan, execution, hand-off and ledger. Imports neither torch nor any framework."""
