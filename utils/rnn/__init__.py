"""Recurrent layers over batches of ragged sequences, fast on a CPU.

- packing: `Packing`, the order of a batch's true frames without padding; `check_lengths`.
- layer: `run_layer`, one GRU or LSTM layer on packed frames or on a whole padded batch, from a state to the next.
- packed_rnn: `packed_rnn`, the layer on a PackedSequence, with a handwritten backward.
- products: `matmul_library`, `choose_products`, the matrix products of the layers by the library that suits the CPU.
- precision: `available_precision`, `autocast`, products in fp32, bf16 or fp16.
- cells: `GRUCell`, `LSTMCell`, the equations of both and their derivatives; another recurrent cell goes here.

Another cell also needs: `RNN_GATES` (utils/configs.py), `RNN_CLASSES` and `_check_stream` (apc_model.py), packed_rnn
and layer.
"""
