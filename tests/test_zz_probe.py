import sys; sys.path.insert(0,'tests')
from test_ddp import *
def test_probe(two, one, tmp_path):
    run = two/"logs/train/two"
    m=read(run/"checkpoints/last.ckpt")["state_dict"]; t=one[1]["state_dict"]
    print("diff", max((m[n]-v).abs().max().item() for n,v in t.items()))
    plain = train_here(tmp_path, f"data.batch_size={2 * B}", "features=none", *SETTINGS[:2], "data.flips=true")["state_dict"]
    print("plain", max((m[n]-v).abs().max().item() for n,v in plain.items()))
    print({r for r in rows_of(run) if r[0].startswith(("dist","held"))},{r for r in rows_of(one[0]) if r[0].startswith(("dist","held"))})
    print(sorted(str(p.relative_to(two)) for p in two.rglob("*") if not p.name.endswith(".npy")))
    print((two/"said").read_text()[-1500:])
    # gathered in one without averaging
    # evaluated weights
