// Small helpers over WebGL2.

const makeProgram = (gl, vertex, fragment) => {
  const program = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, `#version 300 es\nprecision highp float;\nprecision highp int;\n${source}`);
    gl.compileShader(shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS) && !gl.isContextLost())
      throw new Error(gl.getShaderInfoLog(shader));
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS) && !gl.isContextLost())
    throw new Error(gl.getProgramInfoLog(program));
  const at = {};
  for (let i = gl.getProgramParameter(program, gl.ACTIVE_UNIFORMS) - 1; i >= 0; i--) {
    const { name } = gl.getActiveUniform(program, i);
    at[name] = gl.getUniformLocation(program, name);
  }
  return { program, at };
};

// A triangle that covers the picture, without any buffer.
const FULL_PICTURE = `
void main() { gl_Position = vec4(vec2(gl_VertexID & 1, gl_VertexID >> 1) * 4.0 - 1.0, 0.0, 1.0); }`;

const TABLE_WIDTH = 2048;  // texels in a row of a table; every WebGL2 has this much

// A texture as a table: texel i is at (i % width, i / width) and never filtered.
const makeTable = (gl, internal, format, type, count, data = null) => {
  const rows = Math.max(1, Math.ceil(count / TABLE_WIDTH));
  if (rows > gl.getParameter(gl.MAX_TEXTURE_SIZE)) throw new Error('the scene is too large for this graphics card');
  const texture = gl.createTexture();
  gl.bindTexture(gl.TEXTURE_2D, texture);
  gl.texStorage2D(gl.TEXTURE_2D, 1, internal, TABLE_WIDTH, rows);
  for (const side of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, side, gl.NEAREST);
  if (data) gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, 0, TABLE_WIDTH, rows, format, type, data);
  return { texture, rows };
};

const bindTextures = (gl, at, textures) => {
  Object.entries(textures).forEach(([name, texture], unit) => {
    gl.activeTexture(gl.TEXTURE0 + unit);
    gl.bindTexture(gl.TEXTURE_2D, texture);
    gl.uniform1i(at[name], unit);
  });
};

// Clip space from the scene for meshes and lines; `view` is Orbit.view(). Column-major.
const clipFromScene = (view, near, far) => {
  const { right, down, forward, eye, width, height, fx, fy, cx, cy } = view;
  const a = 2 * fx / width, b = 2 * cx / width - 1, c = -2 * fy / height, d = 1 - 2 * cy / height;
  const e = (far + near) / (far - near), f = -2 * far * near / (far - near);
  const rows = [0, 1, 2].map((k) => [
    a * right[k] + b * forward[k], c * down[k] + d * forward[k], e * forward[k], forward[k]]);
  const shift = [0, 1, 2, 3].map((r) => -(rows[0][r] * eye[0] + rows[1][r] * eye[1] + rows[2][r] * eye[2]));
  shift[2] += f;
  return new Float32Array([...rows[0], ...rows[1], ...rows[2], ...shift]);
};

const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
const along = (a, t, b) => [a[0] + t * b[0], a[1] + t * b[1], a[2] + t * b[2]];
const minus = (a, b) => [a[0] - b[0], a[1] - b[1], a[2] - b[2]];
const unit = (a) => { const n = Math.hypot(...a) || 1; return [a[0] / n, a[1] / n, a[2] / n]; };
