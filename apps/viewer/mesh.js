// The mesh: the photos' own colour, the same in a soft light, clay, which shows the shape, normals or depth; its edges
// when asked.

const MESH_VERTEX = `
layout(location = 0) in vec3 position;
layout(location = 1) in vec3 normal;
layout(location = 2) in vec2 uv;
layout(location = 3) in vec3 color;
uniform mat4 clip;
out vec3 vPosition, vNormal, vColor;
out vec2 vUv;
void main() {
  gl_Position = clip * vec4(position, 1.0);
  vPosition = position, vNormal = normal, vUv = vec2(uv.x, 1.0 - uv.y), vColor = color;
}`;

const MESH = `
in vec3 vPosition, vNormal, vColor;
in vec2 vUv;
uniform sampler2D base, relief;
uniform bool textured, hasRelief;
uniform int shade;  // 0 colour, 1 lit, 2 clay, 3 normals, 4 depth
uniform vec3 eye, up, right, forward;
uniform vec2 range;  // depths that are white and black
out vec4 color;

vec3 linear(vec3 c) { return mix(c / 12.92, pow((c + 0.055) / 1.055, vec3(2.4)), step(0.04045, c)); }
vec3 encoded(vec3 c) { return mix(c * 12.92, 1.055 * pow(c, vec3(1.0 / 2.4)) - 0.055, step(0.0031308, c)); }

vec3 normalHere() {
  vec3 n = normalize(vNormal);
  if (hasRelief) {  // tangent frame from how position and uv change across the screen
    vec3 px = dFdx(vPosition), py = dFdy(vPosition);
    vec2 tx = dFdx(vUv), ty = dFdy(vUv);
    float turn = tx.x * ty.y - tx.y * ty.x;
    if (turn != 0.0) {
      vec3 t = (px * ty.y - py * tx.y) / turn, b = (py * tx.x - px * ty.x) / turn;
      t = normalize(t - n * dot(n, t)), b = -normalize(b - n * dot(n, b));  // v grows upwards, rows downwards
      vec3 r = texture(relief, vUv).xyz * (255.0 / 127.5) - 1.0;
      n = normalize(r.x * t + r.y * b + r.z * n);
    }
  }
  return n;
}

void main() {
  vec3 paint = textured ? texture(base, vUv).rgb : linear(vColor);
  if (shade == 0) { color = vec4(encoded(paint), 1.0); return; }
  if (shade == 4) {
    color = vec4(vec3(1.0 - clamp((dot(vPosition - eye, forward) - range.x) / (range.y - range.x), 0.0, 0.95)), 1.0);
    return;
  }
  vec3 toEye = normalize(eye - vPosition), n = normalHere();
  bool inside = !gl_FrontFacing;
  if (shade == 3) { color = vec4(0.5 + 0.5 * n, 1.0); return; }
  if (inside) n = -n;
  vec3 key = normalize(toEye + 0.7 * up - 0.6 * right);
  float sky = 0.5 + 0.5 * dot(n, up), wrapped = max(0.0, (dot(n, key) + 0.25) / 1.25);
  vec3 light = mix(vec3(0.20, 0.19, 0.18), vec3(0.46, 0.48, 0.51), sky) + 0.66 * wrapped * vec3(1.0, 0.98, 0.95);
  if (shade == 2) paint = inside ? vec3(0.36, 0.19, 0.13) : vec3(0.62, 0.60, 0.57);
  color = vec4(encoded(min(paint * light, 1.0)), 1.0);
}`;

const LINE_VERTEX = `
layout(location = 0) in vec3 position;
layout(location = 3) in vec4 color;
uniform mat4 clip;
uniform float pull;
out vec4 vColor;
void main() {
  gl_Position = clip * vec4(position, 1.0);
  gl_Position.z -= pull * gl_Position.w;
  vColor = color;
}`;

const LINE = `
in vec4 vColor;
uniform vec4 tint;
out vec4 color;
void main() { color = vec4(vColor.rgb, 1.0) * vColor.a * tint; }`;

class MeshLayer {
  constructor(gl, mesh) {
    Object.assign(this, { gl, mesh, count: mesh.faces.length });
    this.solid = makeProgram(gl, MESH_VERTEX, MESH);
    this.lines = makeProgram(gl, LINE_VERTEX, LINE);
    this.array = gl.createVertexArray();
    gl.bindVertexArray(this.array);
    this.attribute(0, mesh.positions, 3, gl.FLOAT);
    this.attribute(1, mesh.normals, 3, gl.FLOAT);
    if (mesh.uvs) this.attribute(2, mesh.uvs, 2, gl.FLOAT);
    if (mesh.colors) this.attribute(3, mesh.colors, 3, gl.UNSIGNED_BYTE);
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, mesh.faces, gl.STATIC_DRAW);
    const { base_color: base, normal } = mesh.pictures;
    this.base = this.picture(base, gl.SRGB8_ALPHA8);
    this.relief = this.picture(normal, gl.RGBA8);
    this.textured = Boolean(base && mesh.uvs);
    this.hasRelief = Boolean(normal && mesh.uvs);
  }

  attribute(location, data, components, type) {
    const { gl } = this;
    gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ARRAY_BUFFER, data, gl.STATIC_DRAW);
    gl.enableVertexAttribArray(location);
    gl.vertexAttribPointer(location, components, type, type === gl.UNSIGNED_BYTE, 0, 0);
  }

  picture(image, internal) {
    const { gl } = this, texture = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, texture);
    if (!image) {
      gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA8, 1, 1, 0, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(4));
      return texture;
    }
    gl.texImage2D(gl.TEXTURE_2D, 0, internal, gl.RGBA, gl.UNSIGNED_BYTE, image);
    gl.generateMipmap(gl.TEXTURE_2D);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.LINEAR_MIPMAP_LINEAR);
    const sharp = gl.getExtension('EXT_texture_filter_anisotropic');
    if (sharp) gl.texParameterf(gl.TEXTURE_2D, sharp.TEXTURE_MAX_ANISOTROPY_EXT, 8);
    return texture;
  }

  draw(view, clip, { shade, edges, up, range }) {
    const { gl, solid: { program, at } } = this;
    gl.useProgram(program);
    gl.bindVertexArray(this.array);
    gl.vertexAttrib4f(3, 0.72, 0.71, 0.69, 1);  // of a mesh without colours
    bindTextures(gl, at, { base: this.base, relief: this.relief });
    gl.uniformMatrix4fv(at.clip, false, clip);
    gl.uniform1i(at.textured, this.textured ? 1 : 0);
    gl.uniform1i(at.hasRelief, this.hasRelief ? 1 : 0);
    gl.uniform1i(at.shade, shade);
    gl.uniform3fv(at.eye, view.eye);
    gl.uniform3fv(at.right, view.right);
    gl.uniform3fv(at.up, up);
    gl.uniform3fv(at.forward, view.forward);
    gl.uniform2fv(at.range, range);
    gl.drawElements(gl.TRIANGLES, this.count, gl.UNSIGNED_INT, 0);
    if (edges) this.drawEdges(clip);
  }

  drawEdges(clip) {
    const { gl, lines: { program, at } } = this;
    this.wires = this.wires || this.makeWires();
    gl.useProgram(program);
    gl.bindVertexArray(this.wires.array);
    gl.vertexAttrib4f(3, 0.06, 0.07, 0.09, 1);
    gl.uniformMatrix4fv(at.clip, false, clip);
    gl.uniform1f(at.pull, 2e-4);
    const fade = 0.5 * Math.min(1, Math.sqrt(6e4 / this.count));  // dense triangles would be all edge
    gl.uniform4f(at.tint, fade, fade, fade, fade);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    gl.drawElements(gl.LINES, this.wires.count, gl.UNSIGNED_INT, 0);
    gl.disable(gl.BLEND);
  }

  // Each edge once from each of its faces; sharing them out would cost more than drawing them twice.
  makeWires() {
    const { gl, mesh: { faces, positions } } = this, ends = new Uint32Array(2 * faces.length);
    for (let i = 0; i < faces.length; i++) {
      ends[2 * i] = faces[i];
      ends[2 * i + 1] = faces[i % 3 === 2 ? i - 2 : i + 1];
    }
    const array = gl.createVertexArray();
    gl.bindVertexArray(array);
    this.attribute(0, positions, 3, gl.FLOAT);
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, ends, gl.STATIC_DRAW);
    return { array, count: ends.length };
  }

  // Depth of the nearest face along pixel (x, y), or null: Moeller and Trumbore over all of them.
  depthAt(view, x, y) {
    const { faces, positions: p } = this.mesh, { eye } = view;
    const a = (x - view.cx) / view.fx, b = (y - view.cy) / view.fy;
    const ray = along(along(view.forward, a, view.right), b, view.down);
    const at = (v) => [p[3 * v], p[3 * v + 1], p[3 * v + 2]];
    let nearest = null;
    for (let i = 0; i < faces.length; i += 3) {
      const v0 = at(faces[i]), e1 = minus(at(faces[i + 1]), v0), e2 = minus(at(faces[i + 2]), v0);
      const h = cross(ray, e2), det = dot(e1, h);
      if (det === 0) continue;
      const s = minus(eye, v0), u = dot(s, h) / det;
      if (u < 0 || u > 1) continue;
      const q = cross(s, e1), v = dot(ray, q) / det;
      if (v < 0 || u + v > 1) continue;
      const t = dot(e2, q) / det;
      if (t > 0 && (nearest === null || t < nearest)) nearest = t;
    }
    return nearest;
  }
}
