"""Features of a corpus: the work of load_pretrained_model.py.

job            extract: fill a directory of features
check          check: does a model fit data?
extraction     Extraction, pick_layers: batches of pieces through the model
feature_files  open_features: .pt, .npy or .ark
arguments      parse_arguments
"""
