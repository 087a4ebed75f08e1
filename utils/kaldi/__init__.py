"""Kaldi's formats, in and out.

read_archives    scan_archive: the utterances of a .blogmel, .ark or .scp
write_archives   write_blogmel, write_ark, append_matrix, write_scp
matrices         TextMatrix, BinaryMatrix (with its range): where a matrix lies, and `read()`
text_rows        parse_rows: text to float32
byte_reader      ByteReader: plain and compressed files front to back
"""
