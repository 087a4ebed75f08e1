"""Kaldi's formats, in and out.

read_archives    `scan_archive`: where each utterance of an archive or an .scp lies
write_archives   write_blogmel, write_ark, append_matrix, write_scp
matrices         TextMatrix, BinaryMatrix: `read()` reads, checks and cuts a matrix to its range [first:last]
lists            read_list: utt2spk, wav.scp and the like, line by line
text_rows        parse_rows: text to float32
byte_reader      ByteReader: plain and compressed files front to back
"""
