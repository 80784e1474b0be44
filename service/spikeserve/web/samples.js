// Pictures drawn here, in the manner of Fashion-MNIST: light things on black. They belong to nobody's data set.

const SIDE = 28;

/**
 * Outlines in units of one of 28x28 pixels, painted in this order with a grey level.
 * @type {{name: string, parts: [number, string][]}[]}
 */
export const SAMPLES = [
  {
    name: "Ankle boot",
    parts: [
      [188, "14.5,4 19,3.4 24.6,3.6 25,9 25.4,14 26.2,19 26.2,22.2 2.2,22.2 2,20 3.2,17.8 6.5,16.4 10,14.8 12.6,12 13.8,8"],
      [225, "14.4,4 19,3.4 24.6,3.6 24.7,5.6 14.2,6"],
      [205, "2,22 2,20 3.2,17.8 6.5,16.4 8,18.6 8.4,22"],
      [120, "17,6 21,6 20,12.6 18.2,12.6"],
      [235, "1.8,21.8 26.4,21.8 26.4,24.6 20.4,24.6 19.6,23.6 2.4,23.8"],
    ],
  },
  {
    name: "Trouser",
    parts: [
      [200, "9,1 19,1 20,10 20.6,27 15.8,27 14.2,9 13.6,9 12,27 7.2,27 8,10"],
      [230, "9,1 19,1 19.2,3 8.8,3"],
    ],
  },
  {
    name: "T-shirt",
    parts: [
      [190, "10,3 18,3 21,4 26,9.5 22.6,12.4 20.4,10.4 20.4,25.5 7.6,25.5 7.6,10.4 5.4,12.4 2,9.5 7,4"],
      [60, "10.6,2.6 17.4,2.6 15.8,5.2 12.2,5.2"],
    ],
  },
  {
    name: "Dress",
    parts: [
      [205, "10.4,1 11.8,1 12.4,5 15.6,5 16.2,1 17.6,1 18,8 16.8,11.5 20.2,27 7.8,27 11.2,11.5 10,8"],
      [235, "11,11 17,11 17.2,12.4 10.8,12.4"],
    ],
  },
  {
    name: "Bag",
    parts: [
      [170, "9,11 9,7.4 11,5 17,5 19,7.4 19,11 17.4,11 17.4,8 16.4,6.6 11.6,6.6 10.6,8 10.6,11"],
      [200, "3,10.5 25,10.5 26.4,24.5 1.6,24.5"],
      [140, "3,14 25,14 25.2,15.2 2.8,15.2"],
    ],
  },
];

/**
 * @param {{parts: [number, string][]}} sample
 * @param {number} [pixels]
 * @returns {HTMLCanvasElement}
 */
export function drawSample(sample, pixels = 112) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = pixels;
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  context.fillStyle = "#000";
  context.fillRect(0, 0, pixels, pixels);
  context.scale(pixels / SIDE, pixels / SIDE);
  for (const [grey, outline] of sample.parts) {
    context.fillStyle = `rgb(${grey} ${grey} ${grey})`;
    context.beginPath();
    for (const point of outline.split(" ")) {
      const [x, y] = point.split(",").map(Number);
      context.lineTo(x, y);
    }
    context.closePath();
    context.fill();
  }
  return canvas;
}
