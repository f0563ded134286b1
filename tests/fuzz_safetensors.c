/* fuzz_safetensors.c - any bytes as a safetensors file: open, look everything up, read all. */
#include <string.h>

#include "fuzz.h"
#include "model/safetensors.h"

static void touch_tensor(const vqkvc_st *st, const vqkvc_st_tensor *t)
{
    float chunk[64];
    int64_t step;
    static const uint8_t bytes[] = {[VQKVC_ST_F32] = 4,
                                    [VQKVC_ST_F16] = 2,
                                    [VQKVC_ST_BF16] = 2,
                                    [VQKVC_ST_I32] = 4,
                                    [VQKVC_ST_I64] = 8};
    /* ASan does not watch mappings, and the last page has slack behind the file. */
    size_t at = (size_t)(t->data - st->map.data);
    if (at > st->map.size || (uint64_t)t->n_elements > (st->map.size - at) / bytes[t->type])
        abort();
    if (vqkvc_st_find(st, t->name) != t)
        abort(); /* names are unique */
    if (t->type == VQKVC_ST_I32 || t->type == VQKVC_ST_I64)
        return;
    for (int64_t i = 0; i < t->n_elements; i += step) {
        step = t->n_elements - i < 64 ? t->n_elements - i : 64;
        vqkvc_st_read_f32(t, i, step, chunk);
        fuzz_use(chunk);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char path[64];
    vqkvc_err err = {0};
    vqkvc_st st;
    int fd = fuzz_file(data, size, path);
    if (vqkvc_st_open(&st, path, &err) == VQKVC_OK) {
        for (int i = 0; i < st.n_tensors; i++)
            touch_tensor(&st, &st.tensors[i]);
        for (int i = 0; i < st.n_metadata; i++)
            if (vqkvc_st_metadata(&st, st.metadata_keys[i]) != st.metadata_values[i])
                abort();
        vqkvc_st_close(&st);
    } else if (err.msg[0] == '\0') {
        abort(); /* a refusal says why */
    }
    close(fd);
    return 0;
}

size_t fuzz_seed(int i, uint8_t *dst, size_t cap)
{
    static const struct {
        const char *header;
        size_t data; /* bytes behind it */
    } seeds[] = {
        {"{\"w\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}}", 24},
        {"{\"__metadata__\":{\"format\":\"pt\",\"kind\":\"pca\"},"
         "\"a\":{\"dtype\":\"BF16\",\"shape\":[5],\"data_offsets\":[0,10]},"
         "\"b\":{\"dtype\":\"F16\",\"shape\":[1,2,3,4],\"data_offsets\":[10,58]},"
         "\"c\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[58,66]},"
         "\"d\":{\"dtype\":\"I32\",\"shape\":[0,7],\"data_offsets\":[66,66]}}   ",
         66},
        {"{}", 0},
    };
    if (i < 0 || (size_t)i >= sizeof seeds / sizeof seeds[0])
        return 0;
    uint64_t header = strlen(seeds[i].header);
    if (cap < sizeof header + header + seeds[i].data)
        return 0;
    memcpy(dst, &header, sizeof header);
    memcpy(dst + sizeof header, seeds[i].header, header);
    memset(dst + sizeof header + header, 0x3c, seeds[i].data);
    return sizeof header + header + seeds[i].data;
}
