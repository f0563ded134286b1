/* Descriptors of the codec, as the C header has them, and what of the view kernels ask for. */

enum vqkv__coder { VQKV__NIBBLES, VQKV__BYTES, VQKV__HALVES, VQKV__WIDE };
enum vqkv__frame { VQKV__PRE, VQKV__POST, VQKV__BLOCKWISE };
enum vqkv__transform { VQKV__IDENTITY, VQKV__HADAMARD, VQKV__BASIS };
enum vqkv__gain { VQKV__NO_GAIN, VQKV__RMS, VQKV__ABSMAX, VQKV__SIGNMAX, VQKV__RANGE, VQKV__NSN };

struct vqkv__run {
    unsigned char coder, uniform, stages, beam, bits, words, steady;
    unsigned short width; /* channels that share a code */
    int first;            /* latent of the first channel */
    int planes;           /* groups * stages */
    int codes;            /* offset of the first plane in the stream's part of a block, bytes */
    int book, book_step; /* codewords [width, 2^bits] of the first plane, and to the next group's */
    int gain;            /* gain group of the first channel */
};

struct vqkv__stream {
    unsigned char frame, transform, gain, gain_bytes, basis_bytes;
    int n_members, first_member;
    int n_in, n_latents, n_steady;
    int mean, enc, dec; /* offsets of tables, -1: none. Bases whose entries have one byte begin with
                           their scales, binary16 [members, n_latents] */
    int n_gains, gain_width, gain_table;
    int gain_tokens;
    int outliers, spread, kept;
    int first_run, n_runs;
    int bytes; /* of a block */
    int start; /* bytes of the streams before this one */
};

struct vqkv__member {
    short part, layer, head;
};

struct vqkv__use {
    short stream, member;
};

struct vqkv__node {
    short part, layer, rebuilt, source, slot, prediction, last_stream;
};

struct vqkv__prediction {
    int n_sources, source[2];
    int per_head, rank;
    int bias, map, out;
};

/* Streams that can be encoded without regard to the others: no member, no prediction joins them. */
struct vqkv__component {
    int first, n;                /* in the list of streams by component, in coding order */
    short first_head, last_head; /* KV heads of the members */
};
