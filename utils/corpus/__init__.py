"""Utterances: where they come from, how they are scaled, and the directories that hold them.

utterance         Utterance: what every source gives and every consumer takes
sources           Source, ArchiveSource, PreparedSource
audio_source      AudioSource: audio files or parts of them; AudioOptions: how they are read
audio_tree        find_audio: the audio files below directories
data_directory    read_data_directory: Kaldi's wav.scp, segments, utt2spk
manifest          read_manifest: a table of audio
find_source       find_source: the source that paths name
speakers          Speakers: who speaks in an utterance
normalization     Normalizer: scales frames by a mean and variance; mean_and_std computes them
cmvn              load_normalizer: what --norm_from names, also Kaldi's cmvn.scp
frame_spec        FrameSpec: how frames were made, as models and prepared data record it
scaling           find_normalizer: sums each speaker's frames for a mean and variance; Scaling, scaled
passes            Pass: one loop over utterances, with its progress bar and skip list
preparation       prepare: the work of prepare_data.py
prepared          load_utterance, load_lengths, save_tensor: the prepared directory
output_directory  OutputDirectory: filled by a job that may be killed
batch_order       BatchOrder: which utterances make up each batch
batch_reader      BatchReader: reads and assembles batches in worker processes
arguments         add_source_options, audio_options, choose_scaling
"""
