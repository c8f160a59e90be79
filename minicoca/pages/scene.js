// The picture of things, as data/shapes.py draws them: rows, columns, radii are parts of its side.

const OVERSAMPLING = 3; // drawn this much larger for the model, then averaged down

/** Draw a scene { things, picture } over the whole of a square canvas. */
function draw_scene(context, { things, picture }, drawing) {
  const side = context.canvas.width;
  context.fillStyle = picture ? "white" : "rgb(237 237 237)";
  context.fillRect(0, 0, side, side);
  if (picture) {
    const short = Math.min(picture.width, picture.height); // the middle is kept, as commands do
    const [left, top] = [picture.width - short, picture.height - short].map((rest) => rest / 2);
    context.imageSmoothingQuality = "high";
    context.drawImage(picture, left, top, short, short, 0, 0, side, side);
  }
  for (const { size, colour, shape, row, column } of things) {
    const radius = side * drawing.sizes[size];
    context.setTransform(radius, 0, 0, radius, side * column, side * row);
    context.fillStyle = drawing.colours[colour];
    context.fill(new Path2D(drawing.shapes[shape]), "evenodd");
    context.resetTransform();
  }
}

/** The scene as the model reads it: bytes, side x side x 3. */
function image_of(scene, side, drawing) {
  const large = side * OVERSAMPLING;
  const context = new OffscreenCanvas(large, large).getContext("2d");
  draw_scene(context, scene, drawing);
  const total = new Uint16Array(side * side * 3);
  context.getImageData(0, 0, large, large).data.forEach((byte, i) => {
    const [row, column] = [Math.floor(i / 4 / large), Math.floor(i / 4) % large];
    const pixel = Math.floor(row / OVERSAMPLING) * side + Math.floor(column / OVERSAMPLING);
    if (i % 4 < 3) total[3 * pixel + (i % 4)] += byte;
  });
  return Uint8Array.from(total, (bytes) => Math.round(bytes / OVERSAMPLING ** 2));
}
