"""Export a cascade to ONNX Runtime, add a fine-tune to the bundle, and draw with both.

python examples/export_and_swap.py CASCADE TUNED OUTPUT

The gate compares every engine with the network it stands for, and no bundle is written where they
differ. A fine-tune brings its weights alone: graphs, and what it left as it was, are shared.
"""

import sys
from pathlib import Path

from cascade import Cascade
from cascade.config.engine import BundleOptions
from cascade_export.bundle.finetunes import add_subject
from cascade_export.bundle.write import export_bundle
from cascade_export.settings import ExportOptions, Gate

plain, tuned, output = sys.argv[1:4]
gate = Gate(prompts=("a dog on the beach",), steps=2)  # a real one draws more: leave both out

bundle = export_bundle(
    Cascade.load(plain), Path(output), ExportOptions(engine="onnxruntime", gate=gate)
)
add_subject(bundle, Cascade.load(tuned), "mine", gate)

for subject in (None, "mine"):
    engines = Cascade.load(output, engines=BundleOptions(subject=subject, threads=1))
    drawn = engines.sample("a dog", seeds=[0], steps=2)
    print(subject or "the exported one", f"mean {float(drawn.tensor.mean()):.4f}")
