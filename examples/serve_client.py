"""Draw by a server (`cascade serve`) with the official client of the OpenAI API.

python examples/serve_client.py URL PROMPT OUTPUT

The key, if the server asks for one, is read from DREAMCASCADE_KEY.
"""

import base64
import os
import sys
from pathlib import Path

from openai import OpenAI

url, prompt, output = sys.argv[1:4]
folder = Path(output)
folder.mkdir(parents=True, exist_ok=True)
client = OpenAI(base_url=f"{url}/v1", api_key=os.environ.get("DREAMCASCADE_KEY", "none"))
model = next(iter(client.models.list())).id

# What the OpenAI API does not have goes into `extra_body`.
drawn = client.images.generate(model=model, prompt=prompt, n=2, extra_body={"seed": 7})
for number, picture in enumerate(drawn.data or []):
    (folder / f"{number}.png").write_bytes(base64.b64decode(picture.b64_json or ""))

# The same picture as the first, watched while it is drawn.
events = client.images.generate(
    model=model, prompt=prompt, stream=True, partial_images=2, extra_body={"seed": 7}
)
for event in events:
    if event.type == "image_generation.partial_image":
        name = f"preview-{event.partial_image_index}.png"
    else:
        name = "streamed.png"
    (folder / name).write_bytes(base64.b64decode(event.b64_json))
    print(f"{folder / name}: {event.size}")
