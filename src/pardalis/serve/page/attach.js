// Images that a person attaches: chosen, dropped or pasted.

const LONGEST = 1024; // pixels of a side; models read fewer

/** Return a file as {type: "image", url, name, done}, drawn anew, so without what a camera wrote. */
export async function imagePart(file) {
  const source = URL.createObjectURL(file);
  try {
    const image = new Image();
    image.src = source;
    await image.decode();
    const width = image.naturalWidth || 512;
    const height = image.naturalHeight || 512;
    const scale = Math.min(1, LONGEST / Math.max(width, height));
    const canvas = document.createElement("canvas");
    canvas.width = Math.max(1, Math.round(width * scale));
    canvas.height = Math.max(1, Math.round(height * scale));
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    const type = file.type === "image/jpeg" ? "image/jpeg" : "image/png";
    const name = file.name || "image";
    return { type: "image", url: canvas.toDataURL(type, 0.92), name, done: true };
  } catch {
    throw new Error(`${file.name || "This file"} is no image that this browser reads; use a PNG or JPEG file.`);
  } finally {
    URL.revokeObjectURL(source);
  }
}

/** Return the files of a drop or a paste. */
export const filesOf = (transfer) => [...(transfer?.files ?? [])];

export const carriesFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
