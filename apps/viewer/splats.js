// Gaussian splats: the same stages and constants as scene/rasterize.py, on the graphics card.
//   project: one fragment per splat writes its ellipse and colour (EWA splatting) into a table
//   blend:   one quad per splat, back to front, into a half-float picture that is then laid over the background

const PROJECT = `
precision highp usampler2D;
uniform usampler2D core, look, harmonics;
uniform vec3 right, down, forward, eye;
uniform vec4 lens;        // fx fy cx cy
uniform vec2 size;
uniform vec4 steps;       // log scale, colour, opacity, harmonics
uniform float near;
uniform int count, degree;
uniform bool antialias;
layout(location = 0) out uvec4 ellipse;   // centre in pixels, first column of the covariance's Cholesky factor
layout(location = 1) out uvec4 paint;     // the factor's last number, red and green, blue, opacity

const float BLUR = 0.3;           // px^2; a splat thinner than a pixel would flicker as the camera moves
const float LEAST = 1.0 / 255.0;  // less is not drawn
const float MARGIN = 0.3;         // of tan(fov/2), beyond the picture, where the projection is held linear

float low(uint u) { return float(int(u << 16) >> 16); }
float high(uint u) { return float(int(u) >> 16); }
float ten(uint u, int shift) { return float(int(u << (22 - shift)) >> 22); }

mat3 axesOf(uint packed) {
  vec3 s = vec3(ten(packed, 0), ten(packed, 10), ten(packed, 20)) * ${Math.SQRT1_2 / 511};
  float l = sqrt(max(0.0, 1.0 - dot(s, s)));
  uint which = packed >> 30;
  vec4 q = which == 0u ? vec4(l, s) : which == 1u ? vec4(s.x, l, s.yz) : which == 2u ? vec4(s.xy, l, s.z) : vec4(s, l);
  float w = q.x, x = q.y, y = q.z, z = q.w;
  return mat3(1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y + w * z), 2.0 * (x * z - w * y),
              2.0 * (x * y - w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z + w * x),
              2.0 * (x * z + w * y), 2.0 * (y * z - w * x), 1.0 - 2.0 * (x * x + y * y));
}

int texel, have = -1;
uvec4 words;
float coefficient(int k) {  // k-th signed byte of this splat's harmonics
  int at = texel + (k >> 4);
  if (at != have) { words = texelFetch(harmonics, ivec2(at % ${TABLE_WIDTH}, at / ${TABLE_WIDTH}), 0); have = at; }
  int inside = k & 15;
  return float(int(words[inside >> 2] << (24 - 8 * (inside & 3))) >> 24);
}
vec3 triple(int k) { return vec3(coefficient(3 * k), coefficient(3 * k + 1), coefficient(3 * k + 2)); }

vec3 harmonic(vec3 d) {  // order, signs and constants of scene/sh.py; all but the constant term
  float x = d.x, y = d.y, z = d.z, xx = x * x, yy = y * y, zz = z * z;
  vec3 sum = 0.4886025119029199 * (-y * triple(0) + z * triple(1) - x * triple(2));
  if (degree < 2) return sum;
  sum += 1.0925484305920792 * (x * y * triple(3) - y * z * triple(4) - x * z * triple(6))
       + 0.31539156525252005 * (2.0 * zz - xx - yy) * triple(5) + 0.5462742152960396 * (xx - yy) * triple(7);
  if (degree < 3) return sum;
  return sum - 0.5900435899266435 * (y * (3.0 * xx - yy) * triple(8) + x * (xx - 3.0 * yy) * triple(14))
       + 2.890611442640554 * x * y * z * triple(9) + 1.445305721320277 * z * (xx - yy) * triple(13)
       - 0.4570457994644658 * (4.0 * zz - xx - yy) * (y * triple(10) + x * triple(12))
       + 0.3731763325901154 * z * (2.0 * zz - 3.0 * xx - 3.0 * yy) * triple(11);
}

void main() {
  ellipse = uvec4(0), paint = uvec4(0);  // opacity 0: not drawn
  ivec2 here = ivec2(gl_FragCoord.xy);
  int i = here.y * ${TABLE_WIDTH} + here.x;
  if (i >= count) return;
  uvec4 first = texelFetch(core, here, 0), second = texelFetch(look, here, 0);
  vec3 ray = uintBitsToFloat(first.xyz) - eye;
  float z = dot(forward, ray);
  if (z <= near) return;

  vec2 tangent = vec2(dot(right, ray), dot(down, ray)) / z;
  vec2 margin = MARGIN * 0.5 * size / lens.xy;
  vec2 held = clamp(tangent, -lens.zw / lens.xy - margin, (size - lens.zw) / lens.xy + margin);
  mat3 axes = axesOf(first.w);
  vec3 scales = exp(steps.x * vec3(low(second.x), high(second.x), low(second.y)));
  vec3 depthwise = forward * axes;
  vec3 h0 = lens.x / z * scales * (right * axes - held.x * depthwise);
  vec3 h1 = lens.y / z * scales * (down * axes - held.y * depthwise);
  vec3 minors = cross(h0, h1);
  float xx = dot(h0, h0), xy = dot(h0, h1), yy = dot(h1, h1), plain = dot(minors, minors);
  float determinant = plain + BLUR * (xx + yy) + BLUR * BLUR;
  float opacity = steps.z * float(second.y >> 16);
  if (antialias) opacity *= sqrt(max(plain / determinant, 2.5e-5));
  if (!(opacity >= LEAST)) return;

  vec2 centre = lens.xy * tangent + lens.zw;
  vec2 extent = sqrt(2.0 * log(opacity / LEAST) * vec2(xx + BLUR, yy + BLUR));
  if (any(lessThan(centre + extent, vec2(0.5))) || any(greaterThan(centre - extent, size - 0.5))) return;

  vec3 color = steps.y * vec3(low(second.z), high(second.z), low(second.w));
  texel = i * ((3 * (degree * degree + 2 * degree) + 15) >> 4);
  if (degree > 0) color += steps.w * harmonic(normalize(ray));
  color = max(color, 0.0);
  float l11 = sqrt(xx + BLUR);
  ellipse = floatBitsToUint(vec4(centre, l11, xy / l11));
  paint = uvec4(floatBitsToUint(sqrt(determinant) / l11), packHalf2x16(color.rg), packHalf2x16(vec2(color.b, 0.0)),
                floatBitsToUint(opacity));
}`;

const BLEND_VERTEX = `
precision highp usampler2D;
uniform usampler2D ellipses, paints, order;
uniform vec2 size;
uniform int count;
out vec2 place;  // in standard deviations
flat out vec4 color;
void main() {
  gl_Position = vec4(2.0, 2.0, 2.0, 1.0);
  int rank = gl_InstanceID * 128 + (gl_VertexID >> 2);
  if (rank >= count) return;
  int i = int(texelFetch(order, ivec2(rank % ${TABLE_WIDTH}, rank / ${TABLE_WIDTH}), 0).x);
  ivec2 at = ivec2(i % ${TABLE_WIDTH}, i / ${TABLE_WIDTH});
  uvec4 paint = texelFetch(paints, at, 0);
  float opacity = uintBitsToFloat(paint.w);
  if (opacity == 0.0) return;
  vec4 ellipse = uintBitsToFloat(texelFetch(ellipses, at, 0));
  int corner = gl_VertexID & 3;
  place = sqrt(2.0 * log(opacity * 255.0)) * vec2(corner == 1 || corner == 2 ? 1.0 : -1.0, corner > 1 ? 1.0 : -1.0);
  vec2 pixel = ellipse.xy + vec2(ellipse.z * place.x, ellipse.w * place.x + uintBitsToFloat(paint.x) * place.y);
  gl_Position = vec4((2.0 * pixel / size - 1.0) * vec2(1.0, -1.0), 0.0, 1.0);
  color = vec4(unpackHalf2x16(paint.y), unpackHalf2x16(paint.z).x, opacity);
}`;

const BLEND = `
in vec2 place;
flat in vec4 color;
out vec4 light;
void main() {
  float alpha = color.a * exp(-0.5 * dot(place, place));
  if (alpha < 1.0 / 255.0) discard;
  alpha = min(alpha, 0.999);
  light = vec4(color.rgb * alpha, alpha);
}`;

const OVER = `
uniform sampler2D picture;
uniform vec3 background;
out vec4 color;
void main() {
  vec4 light = texelFetch(picture, ivec2(gl_FragCoord.xy), 0);
  color = vec4(light.rgb + (1.0 - light.a) * background, 1.0);
}`;

class SplatLayer {
  constructor(gl, splats, { near, antialias }) {
    Object.assign(this, { gl, splats, near, antialias, count: splats.count, degree: splats.bands.length });
    this.project = makeProgram(gl, FULL_PICTURE, PROJECT);
    this.blend = makeProgram(gl, BLEND_VERTEX, BLEND);
    this.over = makeProgram(gl, FULL_PICTURE, OVER);
    this.halfFloats = gl.getExtension('EXT_color_buffer_float') || gl.getExtension('EXT_color_buffer_half_float');
    this.upload();
    this.quads = gl.createVertexArray();
    gl.bindVertexArray(this.quads);
    const corners = Array.from({ length: 128 }, (_, i) => [0, 1, 2, 0, 2, 3].map((corner) => 4 * i + corner)).flat();
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, new Uint16Array(corners), gl.STATIC_DRAW);
    this.nothing = gl.createVertexArray();
  }

  upload() {
    const { gl, splats, count } = this;
    const rows = Math.max(1, Math.ceil(count / TABLE_WIDTH)), words = rows * TABLE_WIDTH * 4;
    const core = new Uint32Array(words), look = new Uint32Array(words), floats = new Float32Array(core.buffer);
    const { positions: p, quats: q, logScales: s, colors: c, opacities: o } = splats;
    for (let i = 0; i < count; i++) {
      const a = 4 * i, b = 3 * i;
      floats[a] = p[b], floats[a + 1] = p[b + 1], floats[a + 2] = p[b + 2];
      core[a + 3] = (q[a] & 1023) | (q[a + 1] & 1023) << 10 | (q[a + 2] & 1023) << 20 | q[a + 3] << 30;
      look[a] = (s[b] & 65535) | s[b + 1] << 16;
      look[a + 1] = (s[b + 2] & 65535) | o[i] << 16;
      look[a + 2] = (c[b] & 65535) | c[b + 1] << 16;
      look[a + 3] = c[b + 2] & 65535;
    }
    const wide = [gl.RGBA32UI, gl.RGBA_INTEGER, gl.UNSIGNED_INT];
    this.core = makeTable(gl, ...wide, count, core);
    this.look = makeTable(gl, ...wide, count, look);
    this.harmonics = this.uploadHarmonics(wide);
    this.order = makeTable(gl, gl.R32UI, gl.RED_INTEGER, gl.UNSIGNED_INT, count);
    this.sorted = null;  // direction that the order is for
    this.ellipses = makeTable(gl, ...wide, count);
    this.paints = makeTable(gl, ...wide, count);
    this.table = gl.createFramebuffer();
    gl.bindFramebuffer(gl.FRAMEBUFFER, this.table);
    gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, this.ellipses.texture, 0);
    gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT1, gl.TEXTURE_2D, this.paints.texture, 0);
    gl.drawBuffers([gl.COLOR_ATTACHMENT0, gl.COLOR_ATTACHMENT1]);
  }

  // All bands of a splat side by side as bytes, whole texels of 16 for each splat.
  uploadHarmonics(wide) {
    const { gl, count, splats: { bands } } = this;
    const texels = (3 * (this.degree ** 2 + 2 * this.degree) + 15) >> 4;
    const rows = Math.max(1, Math.ceil(count * texels / TABLE_WIDTH));
    const bytes = new Int8Array(rows * TABLE_WIDTH * 16);
    let inside = 0;
    for (const band of bands) {
      const width = count ? band.length / count : 0;
      for (let i = 0, at = 0; i < count; i++)
        for (let k = 0; k < width; k++) bytes[16 * texels * i + inside + k] = band[at++];
      inside += width;
    }
    return makeTable(gl, ...wide, count * texels, new Uint32Array(bytes.buffer));
  }

  setOrder(order, direction) {
    const { gl } = this, whole = Math.floor(order.length / TABLE_WIDTH), rest = order.length % TABLE_WIDTH;
    gl.bindTexture(gl.TEXTURE_2D, this.order.texture);
    const send = (row, width, rows, data) =>
      gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, row, width, rows, gl.RED_INTEGER, gl.UNSIGNED_INT, data);
    if (whole) send(0, TABLE_WIDTH, whole, order.subarray(0, whole * TABLE_WIDTH));
    if (rest) send(whole, rest, 1, order.subarray(whole * TABLE_WIDTH));
    this.sorted = direction;
  }

  resize(width, height) {
    const { gl } = this;
    if (this.width === width && this.height === height) return;
    if (this.picture) gl.deleteTexture(this.picture);
    this.picture = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, this.picture);
    gl.texStorage2D(gl.TEXTURE_2D, 1, this.halfFloats ? gl.RGBA16F : gl.RGBA8, width, height);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.NEAREST);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, gl.NEAREST);
    this.target = this.target || gl.createFramebuffer();
    gl.bindFramebuffer(gl.FRAMEBUFFER, this.target);
    gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, this.picture, 0);
    Object.assign(this, { width, height });
  }

  draw(view, background) {
    const { gl } = this;
    this.resize(view.width, view.height);
    gl.disable(gl.DEPTH_TEST);
    gl.disable(gl.BLEND);
    gl.bindVertexArray(this.nothing);
    this.drawTable(view);
    this.drawQuads(view);
    gl.disable(gl.BLEND);
    gl.bindFramebuffer(gl.FRAMEBUFFER, null);
    gl.bindVertexArray(this.nothing);
    gl.useProgram(this.over.program);
    bindTextures(gl, this.over.at, { picture: this.picture });
    gl.uniform3fv(this.over.at.background, background);
    gl.drawArrays(gl.TRIANGLES, 0, 3);
  }

  drawTable(view) {
    const { gl, project: { program, at }, splats: { steps } } = this;
    gl.bindFramebuffer(gl.FRAMEBUFFER, this.table);
    gl.viewport(0, 0, TABLE_WIDTH, this.core.rows);
    gl.useProgram(program);
    bindTextures(gl, at, { core: this.core.texture, look: this.look.texture, harmonics: this.harmonics.texture });
    for (const name of ['right', 'down', 'forward', 'eye']) gl.uniform3fv(at[name], view[name]);
    gl.uniform4f(at.lens, view.fx, view.fy, view.cx, view.cy);
    gl.uniform2f(at.size, view.width, view.height);
    gl.uniform4f(at.steps, steps.logScale, steps.color, steps.opacity, steps.harmonics);
    gl.uniform1f(at.near, this.near);
    gl.uniform1i(at.count, this.count);
    gl.uniform1i(at.degree, this.degree);
    gl.uniform1i(at.antialias, this.antialias ? 1 : 0);
    gl.drawArrays(gl.TRIANGLES, 0, 3);
  }

  drawQuads(view) {
    const { gl, blend: { program, at } } = this;
    gl.bindFramebuffer(gl.FRAMEBUFFER, this.target);
    gl.viewport(0, 0, view.width, view.height);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT);
    if (!this.sorted) return;
    gl.useProgram(program);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    const textures = { ellipses: this.ellipses.texture, paints: this.paints.texture, order: this.order.texture };
    bindTextures(gl, at, textures);
    gl.uniform2f(at.size, view.width, view.height);
    gl.uniform1i(at.count, this.count);
    gl.bindVertexArray(this.quads);
    gl.drawElementsInstanced(gl.TRIANGLES, 768, gl.UNSIGNED_SHORT, 0, Math.ceil(this.count / 128));
  }

  // Depth at which half of the light along pixel (x, y) is gone, or null where the view goes through.
  depthAt(view, x, y) {
    const { positions: p, logScales: s, opacities, steps } = this.splats;
    const { right, down, forward, eye } = view, met = [];
    for (let i = 0, j = 0; i < this.count; i++, j += 3) {
      const ray = [p[j] - eye[0], p[j + 1] - eye[1], p[j + 2] - eye[2]], z = dot(forward, ray);
      if (z <= this.near) continue;
      const du = view.fx * dot(right, ray) / z + view.cx - x, dv = view.fy * dot(down, ray) / z + view.cy - y;
      // As if round, by the mean of its axes: exact enough to choose what to turn around.
      const radius = view.fx / z * Math.exp(steps.logScale * (s[j] + s[j + 1] + s[j + 2]) / 3);
      const far = (du * du + dv * dv) / (radius * radius + 0.3);
      if (far < 9) met.push([z, steps.opacity * opacities[i] * Math.exp(-0.5 * far)]);
    }
    met.sort((a, b) => a[0] - b[0]);
    let light = 1;
    for (const [z, alpha] of met) if ((light *= 1 - alpha) < 0.5) return z;
    return null;
  }
}
