"""mujax prepare - text into shards of tokens, once, for any number of runs.

  mujax prepare --source=embedded --tokenizer=train:2048 --layout=packed --workdir=data/library
  mujax prepare --source="parquet:fineweb/*.parquet" --tokenizer=huggingface:gpt2/tokenizer.json \\
      --layout=packed --validation=hash:0.001 --workdir=data/fineweb --processes=32
  mujax prepare --source="jsonl:c4/en/*.json.gz" --tokenizer=sentencepiece:t5.model,extra_ids=100 \\
      --layout=document --seq_len=256 --validation=head:98304 --workdir=data/c4 --processes=32
  mujax prepare --source=seqio:mujax_c4_en_t5 --layout=document --seq_len=256 \\
      --validation=head:98304 --workdir=data/c4

Flags
  --source=WHERE           embedded: Python's standard library
                           text:PATTERN: a file is a document, in a folder or by a pattern
                           jsonl:PATTERN, parquet:PATTERN: a line or row is a document; also .gz
                           tfds:NAME/CONFIG:VERSION: a TensorFlow dataset, through seqio
                           seqio:TASK, or seqio:MODULE:TASK: a Task, with its own tokenizer
  --tokenizer=WHICH        sentencepiece:FILE[,extra_ids=N], byte_vocabulary[,extra_ids=N] and
                           ids:N[,eos_id=I], as in seqio; huggingface:tokenizer.json[,eos=NAME];
                           bytes: 256 ids, 0 is the end; train:N: SentencePiece of N pieces,
                           trained on the source
  --layout=LAYOUT          document: one document per row, cut or padded to --seq_len, for
                           data.eos_id; packed: one after the other, for any data.seq_len
  --seq_len=N              tokens per row of layout document
  --validation=RULE        head:N: the first N documents; hash:SHARE: those with the lowest
                           SHA-256; own:WHERE: a split, or a pattern of files, of the source; own
                           (the default): one file in twenty of embedded and text
  --field=NAME             field of a record that holds its text (text)
  --data_dir=DIR           data folder of TFDS
  --processes=N            number of processes (all cores)
  --workdir=DIR            where the shards go

Leaves in DIR
  dataset.json             counts, tokenizer, tokens per byte, files with SHA-256, fingerprint
  tokenizer.model or .json what the text was encoded with
  train-*.bin, validation-*.bin
Killed at any time, the same command resumes and writes the same bytes. A finished dataset stays as
it is, and the command prints if files of the source have changed since.
Exit codes: 0 finished, 2 a mistake in the command or the source, 75 interrupted."""

import os

from mujax.cli.flags import number
from mujax.cli.verb import FINISHED, Verb


def run(
    source: str,
    layout: str,
    workdir: str,
    tokenizer: str | None,
    seq_len: str | None,
    validation: str | None,
    field: str | None,
    data_dir: str | None,
    processes: str | None,
) -> int:
    from mujax.data.prepare.dataset import Recipe, prepare

    recipe = Recipe(
        source=source,
        tokenizer=tokenizer or "",
        layout=layout,
        seq_len=number("seq_len", seq_len, 0, 1) if seq_len else 0,
        validation=validation or "own",
        field=field or "text",
        data_dir=data_dir or "",
    )
    described = prepare(
        recipe, workdir, number("processes", processes, os.cpu_count() or 1, 1, 1024)
    )
    for split, counts in described["splits"].items():
        per_byte = counts["tokens_per_byte"]
        ratio = "" if per_byte is None else f", {per_byte:.3f} a byte"
        cut = f", {counts['cut_documents']} of them cut" if counts["cut_documents"] else ""
        padding = f", and {counts['padding']} of padding" if "padding" in counts else ""
        print(
            f"{split}: {counts['documents']} documents{cut}; {counts['tokens']} "
            f"tokens{padding}{ratio}"
        )
    fields = {"name": "shards", "path": workdir, "vocab_size": described["tokenizer"]["vocab_size"]}
    if described["layout"] == "document":
        fields |= {"seq_len": described["seq_len"], "eos_id": described["tokenizer"]["eos_id"]}
    print(f"fingerprint {described['fingerprint']}; train on it with")
    print("  " + " ".join(f"--config.data.{name}={value}" for name, value in fields.items()))
    return FINISHED


VERB = Verb(
    "prepare",
    __doc__,
    run,
    required=("source", "layout", "workdir"),
    optional=("tokenizer", "seq_len", "validation", "field", "data_dir", "processes"),
)
