"""From sound to frames.

waveforms   read_waveform, waveform_blocks: any file as 16 kHz mono
front_ends  FRONT_ENDS, find_front_end: filterbanks by name
log_mel     log_mel, OnlineLogMel: Kaldi's filterbank
frames      frames_to_hours, frames_to_minutes, num_frames, and the numbers of the front end
"""
