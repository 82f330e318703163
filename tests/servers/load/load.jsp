<%@ page contentType="text/plain" import="java.util.*, java.nio.charset.StandardCharsets" %><%!
// Holds texts from its first request on, and makes and drops others as it is asked to, as app.js does.
static final int KEYS = 600;
static final Object[] HELD = new Object[KEYS];

static {
    for (int key = 0; key < KEYS; key++) HELD[key] = hold(key, key, 2000 + key * 7919 % 50000);
}

/** Letters by a linear congruential generator. */
static byte[] content(int seed, int length) {
    byte[] bytes = new byte[length];
    for (int i = 0, x = seed; i < length; i++) {
        x = x * 1664525 + 1013904223;
        bytes[i] = (byte) (97 + (x >>> 24) % 26);
    }
    return bytes;
}

/** FNV-1a of 32 bits. */
static String sum(byte[] bytes) {
    int hash = 0x811c9dc5;
    for (byte b : bytes) hash = (hash ^ b) * 0x01000193;
    return Integer.toUnsignedString(hash);
}

static String latin(byte[] bytes) {
    return new String(bytes, StandardCharsets.ISO_8859_1);
}

/** In one of three forms: one string, memory outside of the heap, many small strings. */
static Object hold(int key, int seed, int length) {
    byte[] bytes = content(seed, length);
    if (key % 3 == 0) return latin(bytes);
    if (key % 3 == 1) return java.nio.ByteBuffer.allocateDirect(length).put(0, bytes);
    List<String> lines = new ArrayList<>();
    for (int at = 0; at < length; at += 64) {
        lines.add(latin(Arrays.copyOfRange(bytes, at, Math.min(at + 64, length))));
    }
    return lines;
}

@SuppressWarnings("unchecked")
static byte[] bytes(Object held) {
    if (held instanceof String) return ((String) held).getBytes(StandardCharsets.ISO_8859_1);
    if (held instanceof List) return bytes(String.join("", (List<String>) held));
    java.nio.ByteBuffer buffer = (java.nio.ByteBuffer) held;
    byte[] bytes = new byte[buffer.capacity()];
    buffer.get(0, bytes);
    return bytes;
}

/** Of many parts, put together from the last to the first. */
static String make(int seed, int length, int parts) {
    Map<Integer, String> made = new TreeMap<>(Comparator.reverseOrder());
    for (int part = 0; part < parts; part++) made.put(part, latin(content(seed + part, length)));
    return sum(bytes(String.join("", made.values())));
}

static int number(jakarta.servlet.ServletRequest request, String name) {
    String text = request.getParameter(name);
    return text == null ? 0 : Integer.parseUnsignedInt(text);
}
%><%
int key = number(request, "key"), seed = number(request, "seed");
int length = number(request, "length"), parts = number(request, "parts");
switch (request.getParameter("do")) {
    case "text":
        out.println(latin(bytes(HELD[key])));
        break;
    case "sum":
        out.println(sum(bytes(HELD[key])));
        break;
    case "keep":
        Object old = HELD[key];
        HELD[key] = hold(key, seed, length);
        out.println(sum(bytes(old)));
        break;
    case "make":
        out.println(make(seed, length, parts));
        break;
    case "apart":
        String[] made = new String[1];
        Thread thread = new Thread(() -> made[0] = make(seed, length, parts));
        thread.start();
        thread.join();
        out.println(made[0]);
        break;
    case "collect":
        System.gc();
        out.println("collected");
        break;
    default:
        response.sendError(404);
}
%>
