// The page's scene, unpacked: the counterpart of scene/formats/page_data.py.

const fromBase64 = (text) => {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
};

const inflate = async (bytes) => {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('deflate'));
  return new Uint8Array(await new Response(stream).arrayBuffer());
};

// Integers [count, components] of a block; times block.step they are the values.
const readBlock = async (payload, block) => {
  const planes = await inflate(payload.subarray(block.at, block.at + block.size));
  const { count, components, bytes, delta } = block;
  if (planes.length !== count * components * bytes) throw new Error('the data of this page is damaged');
  const out = new Int32Array(count * components);
  for (let c = 0; c < components; c++) {
    let before = 0;
    for (let i = 0, at = c * bytes * count; i < count; i++, at++) {
      let zigzag = 0;
      for (let b = 0; b < bytes; b++) zigzag |= planes[at + b * count] << (8 * b);
      const value = (zigzag >>> 1) ^ -(zigzag & 1);
      out[i * components + c] = delta ? (before += value) : value;
    }
  }
  return out;
};

const scaled = (integers, step) => Float32Array.from(integers, (value) => value * step);

// What SplatLayer needs: positions as floats, all else as the integers that the shader unpacks itself.
const unpackSplats = async (payload, header) => {
  const { means, quats, log_scales, colors, opacities, harmonics } = header.blocks;
  const [p, q, s, c, o, ...bands] = await Promise.all(
    [means, quats, log_scales, colors, opacities, ...harmonics].map((block) => readBlock(payload, block)));
  return {
    count: header.count, positions: scaled(p, means.step), quats: q, logScales: s, colors: c, opacities: o, bands,
    steps: { logScale: log_scales.step, color: colors.step, opacity: opacities.step,
             harmonics: harmonics.length ? harmonics[0].step : 0 },
  };
};

const octahedral = (integers, step) => {
  const normals = new Float32Array(integers.length / 2 * 3);
  for (let i = 0, j = 0; i < integers.length; i += 2, j += 3) {
    let x = integers[i] * step, y = integers[i + 1] * step;
    const z = 1 - Math.abs(x) - Math.abs(y);
    if (z < 0) [x, y] = [(1 - Math.abs(y)) * (x < 0 ? -1 : 1), (1 - Math.abs(x)) * (y < 0 ? -1 : 1)];
    const length = Math.hypot(x, y, z) || 1;
    normals[j] = x / length, normals[j + 1] = y / length, normals[j + 2] = z / length;
  }
  return normals;
};

const unpackMesh = async (payload, header) => {
  const { positions, normals, faces, uvs, colors } = header.blocks;
  const read = (block) => (block ? readBlock(payload, block) : null);
  const [p, n, f, t, c] = await Promise.all([positions, normals, faces, uvs, colors].map(read));
  const pictures = {};
  for (const [name, entry] of Object.entries(header.pictures || {})) {
    const blob = new Blob([payload.subarray(entry.at, entry.at + entry.size)], { type: entry.type });
    pictures[name] = await createImageBitmap(blob, { premultiplyAlpha: 'none', colorSpaceConversion: 'none' });
  }
  return {
    positions: scaled(p, positions.step), normals: octahedral(n, normals.step), faces: Uint32Array.from(f),
    uvs: t && scaled(t, uvs.step), colors: c && Uint8Array.from(c), pictures,
  };
};
