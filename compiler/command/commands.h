/* commands.h - the commands of the program, one file each (cmd_NAME.c). */
#ifndef VQKVC_COMMAND_COMMANDS_H
#define VQKVC_COMMAND_COMMANDS_H

#include "command/options.h"

extern const vqkvc_command vqkvc_command_build, vqkvc_command_capture, vqkvc_command_plan,
    vqkvc_command_emit, vqkvc_command_eval, vqkvc_command_suite, vqkvc_command_bench,
    vqkvc_command_model, vqkvc_command_db;

#endif
