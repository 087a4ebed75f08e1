"""Library of the scripts of downstream/: corpora, features, probes and reports.

- corpus, splits, labels: `load_corpus`, `find_splits`, `read_labels`; features, frame_file: log Mel and hidden
  states to probe, read from files a batch at a time.
- phones, speakers: `classify_phones`; `identify`, `verify`, `make_trials`; speaker_study, speaker_report: verification
  of unseen speakers.
- abx, dtw: `abx_errors`, the errors of ABX discrimination; `segment_distances`, by dynamic time warping.
- recognition: `recognise`, phone error rates with little labelled speech, by CTC.
- probes, scoring: `train_probe`, `score_phones`, `equal_error_rate`.
- study, plan, training: `Study`, `choose_best`, `train`; report, plots, summary: `write_report`, `write_summary`;
  markdown: `table`.
- arguments: options that the scripts share.
"""
