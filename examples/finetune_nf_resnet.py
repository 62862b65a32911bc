"""Fine-tune the pretrained NF-ResNet-34 on a folder of event recordings, one folder a class.

    python examples/finetune_nf_resnet.py RECORDINGS

Without folders train and test in it, a part of the recordings of each class is kept for the test.
"""

import sys

import timm
import torch
from torch.utils.data import DataLoader

from sj_ottt.data import EventFolder, NormalizeFrames, collate_time_first
from sj_ottt.learning import predict, train_step

options = {"steps": 4, "size": (64, 64), "transform": NormalizeFrames()}
train, test = (EventFolder(sys.argv[1], split=part, **options) for part in ("train", "test"))
model = timm.create_model("ottt_nf_resnet34", pretrained=True, num_classes=len(train.classes))
optimizer = torch.optim.Adam(model.parameters(), 1e-3)
for epoch in range(12):
    for frames, labels in DataLoader(train, 12, shuffle=True, collate_fn=collate_time_first):
        loss, _ = train_step(model, optimizer, frames, labels)
    print(f"epoch {epoch + 1}: loss of the last batch {loss:.3f}", flush=True)
found = [(predict(model, x), y) for x, y in DataLoader(test, 12, collate_fn=collate_time_first)]
right = sum(int((logits.argmax(1) == y).sum()) for logits, y in found)
print(f"{right} of {len(test)} recordings labelled rightly")
