/* store_list.h - what `vqkvc db ls` prints: the plans and captures of a store, without the parts
 * that they were made from. */
#ifndef VQKVC_COMMAND_STORE_LIST_H
#define VQKVC_COMMAND_STORE_LIST_H

#include "calib_db/kvdb.h"

/* Appends a table, a row a plan or capture, in the order of their ids: name, model, bits a value of
 * a coded token, KL of the newest evaluation and the text that it was on, size (of a plan's newest
 * header, of a capture with its parts), and the command or recipe that made it. "-" stands for what
 * is not known, "?" for what is damaged. */
vqkvc_code vqkvc_store_list(kvdb *db, vqkvc_buf *out, vqkvc_err *err);

#endif
