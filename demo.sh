#!/usr/bin/env bash
# Real speech becomes tensors, a model learns on the CPU, and features come out: in two minutes, from a fresh clone.
set -euo pipefail
cd "$(dirname "$0")"
. ./environment.sh
enter_environment requirements.txt

sample=librispeech_data/sample
prepared=librispeech_data/preprocessed
features=librispeech_data/features/demo
experiment=logs/demo.dir
epochs=20

say() { printf '\n== %s\n' "$*"; }

say "Prepare: log-Mel frames of five real utterances become one padded tensor each"
for split in train dev; do
    python prepare_data.py --librispeech_audio "$sample/audio/$split" --save_dir "$prepared/sample-$split" --overwrite
done

say "Train: 3 GRU layers of 512 learn to predict the frame 3 steps (30 ms) ahead"
python train_apc.py --experiment_name demo --overwrite --epochs "$epochs" --batch_size 2 --learning_rate 5e-4 \
    --rnn_residual --time_shift 3 --train_split sample-train --val_split sample-dev --load_data_workers 1

say "Extract: the last layer's hidden states are the features, here of audio, read as the model's training data were"
python load_pretrained_model.py --checkpoint "$experiment/demo__epoch_$epochs.model" --data "$sample/audio/dev" \
    --save_dir "$features" --overwrite --load_data_workers 0

say "Extract with the model in pretrained/, which was trained on LibriSpeech"
python load_pretrained_model.py --data "$sample/audio" --save_dir "$features-pretrained" --overwrite --load_data_workers 0

say "Done"
first=$(grep -o 'training loss [0-9.]*, validation loss [0-9.]*' "$experiment/demo.log" | head -n 1)
last=$(grep -o 'training loss [0-9.]*, validation loss [0-9.]*' "$experiment/demo.log" | tail -n 1)
cat <<EOF
after epoch 1:  $first
after epoch $epochs: $last

prepared utterances  $prepared/sample-train, $prepared/sample-dev
checkpoints, log     $experiment
features             $features, $features-pretrained
curves               .venv/bin/tensorboard --logdir logs/tensorboard
EOF
