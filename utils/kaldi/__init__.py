"""Kaldi's formats, in and out.

read_archives    `scan_archive`, and an .scp's file:offset[range]
write_archives   write_blogmel, write_ark, append_matrix, write_scp
matrices         TextMatrix, BinaryMatrix: where a matrix lies; `read()` also applies [first:last]
lists            read_list: utt2spk, wav.scp and the like, line by line
text_rows        parse_rows: text to float32
byte_reader      ByteReader: plain and compressed files front to back
"""
