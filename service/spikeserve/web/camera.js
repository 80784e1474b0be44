// The webcam, opened only when it is asked for and closed when it is not needed any more.

import { Problem } from "/web/api.js";

const REASONS = {
  NotAllowedError: "The browser was not allowed to use it.",
  NotFoundError: "There is no camera here.",
  NotReadableError: "Another program has it.",
};

/**
 * @param {HTMLVideoElement} video shows what it sees
 * @returns {Promise<() => void>} closes it; throws Problem
 */
export async function openCamera(video) {
  if (!navigator.mediaDevices?.getUserMedia) {
    throw new Problem({ title: "No webcam", detail: "Browsers give a page the camera only over https, or on localhost." });
  }
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { width: 640, height: 480, frameRate: { ideal: 60 } }, audio: false });
  } catch (error) {
    const { name, message } = /** @type {Error} */ (error);
    throw new Problem({ title: "No webcam", detail: REASONS[name] ?? message });
  }
  video.srcObject = stream;
  video.hidden = false;
  await video.play();
  return () => {
    for (const track of stream.getTracks()) track.stop();
    video.srcObject = null;
    video.hidden = true;
  };
}

/**
 * The square in the middle of a picture or video, on a canvas of so many pixels.
 * @param {HTMLVideoElement} video
 * @param {CanvasRenderingContext2D} context
 */
export function drawSquare(video, context) {
  const { videoWidth: width, videoHeight: height } = video;
  const side = Math.min(width, height);
  const { canvas } = context;
  context.drawImage(video, (width - side) / 2, (height - side) / 2, side, side, 0, 0, canvas.width, canvas.height);
}
