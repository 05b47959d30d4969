#!/usr/bin/env bash
# The main job on real input: a nano model learns Tang verse, then LoRA-SFT on 20,000 couplets, then both answer.
# Needs the folder of real data beside the checkout (../shared/data), which is not part of the project.
# Usage: bench/real_input.sh [FOLDER]   (docs/results.md shows the outcome)
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-runs/real}
data=../shared/data
[ -d "$data" ] || { echo "no $data: nothing to run on" >&2; exit 2; }
tunesmith=${TUNESMITH:-.venv/bin/tunesmith}
mkdir -p "$out"

# 20,000 pairs to learn and 200 to judge by, as an Alpaca file
python3 - "$data/couplet_pairs.jsonl" "$out" <<'PY'
import json, random, sys
rows = [json.loads(line) for line in open(sys.argv[1], encoding="utf-8")]
random.Random(0).shuffle(rows)
seen, pairs = set(), []
for row in rows:  # an upper line that was learnt must not be asked
    if row["u"] not in seen:
        seen.add(row["u"])
        pairs.append({"instruction": "请对出下联。", "input": row["u"], "output": row["l"]})
for name, part in (("train", pairs[:20000]), ("test", pairs[20000:20200])):
    lines = ",\n".join(json.dumps(p, ensure_ascii=False) for p in part)
    open(f"{sys.argv[2]}/{name}.json", "w", encoding="utf-8").write(f"[\n{lines}\n]\n")
PY

"$tunesmith" train recipes/demo/1-pretrain.yaml --overwrite \
  "data.train.0={path: $data/tang_jueju_lvshi.jsonl, format: text, columns: {text: lines}}" \
  model.scratch.sizes.hidden_size=256 model.scratch.sizes.intermediate_size=704 \
  model.scratch.sizes.num_hidden_layers=6 model.scratch.sizes.num_attention_heads=8 \
  model.scratch.sizes.num_key_value_heads=4 model.scratch.tokenizer.vocabulary_size=8000 \
  schedule.epochs=1 schedule.learning_rate=2e-3 output="$out/tang"

"$tunesmith" train recipes/demo/2-couplets.yaml --overwrite model="$out/tang" \
  data.train.0="$out/train.json" data.validation.0="$out/test.json" schedule.epochs=2 output="$out/couplets"
