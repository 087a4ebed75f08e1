"""Library of the scripts beside it: corpora, features, probes and reports.

- corpus, splits, labels: `load_corpus`, `find_splits`, `read_labels`; features: log Mel and hidden states to probe.
- probes, scoring: `train_probe`, `score_phones`, `equal_error_rate`.
- study, plan, training: `Study`, `choose_best`, `train`; report, plots: `write_report`.
- options: arguments that the scripts share.
"""
