"""How far can a digit classifier shrink if its scores move by 1 % of their variance at most?"""

from pathlib import Path

from onnxpress import Job, compress

here = Path(__file__).parent
model, data = here / "digits_fc.onnx", here / "digits_train.npz"
out = Path("digits_fc.pressed.onnx")
report = compress(Job(model, out, tolerance="1%", data=data, effort="quick", seed=0))
print(report.text())
