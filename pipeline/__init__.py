"""How stages become a run: plan, Ray dataset, receipts, log, publishing, ledger, and the command line."""
