"""Make a cascade one's own: tune it on 3 to 5 photos of a subject and draw it elsewhere.

python examples/personalise.py PHOTOS NOUN OUTPUT [CASCADE]

Of `mini`, which it takes if none is named, about a quarter of an hour on two CPU cores.
"""

import sys

from cascade import Cascade, personalise

photos, noun, output = sys.argv[1:4]

# Started again with the same settings it goes on where it was stopped. Any setting can be given:
# recipe={"preset": "paper", "base": {"steps": 800}}.
folder = personalise(
    cascade=sys.argv[4] if len(sys.argv) > 4 else "mini",
    instance_data_dir=photos,
    class_noun=noun,
    output_dir=output,
    validation_images=0,
)
mine = Cascade.load(folder)
subject = mine.stages[0].config.subjects[-1]
prompt = f"a {subject.identifier} {subject.class_noun} on the beach"
mine.sample(prompt, num_images=1).images[0].save(folder / "on-the-beach.png")
print(f"{prompt}: {folder / 'on-the-beach.png'}")
