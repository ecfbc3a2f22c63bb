"""Make a cascade one's own: tune `mini` on 3 to 5 photos of a subject and draw it elsewhere.

python examples/personalise.py PHOTOS NOUN OUTPUT [STEPS]

About a quarter of an hour on two CPU cores; STEPS makes it shorter, and the likeness less.
"""

import sys

from cascade import Cascade, personalise

photos, noun, output = sys.argv[1:4]
recipe = {"base": {"steps": int(sys.argv[4])}} if len(sys.argv) > 4 else None
if recipe:
    recipe["base"]["optimizer"] = {"warmup_steps": 0}

# Started again with the same settings it goes on where it was stopped.
folder = personalise(
    cascade="mini", instance_data_dir=photos, class_noun=noun, output_dir=output, recipe=recipe
)
mine = Cascade.load(folder)
subject = mine.stages[0].config.subjects[-1]
prompt = f"a {subject.identifier} {subject.class_noun} on the beach"
mine.sample(prompt, num_images=1).images[0].save(folder / "on-the-beach.png")
print(f"{prompt}: {folder / 'on-the-beach.png'}")
