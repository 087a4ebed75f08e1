"""What every room uses: errors, files, processes, arguments.

errors       InputError, Stopped, one_line, run_script: how a script ends
files        atomic_write, lock_directory, read_json, write_json, remove_made, check_utterance_id
untrusted    load_untrusted, read_bytes: files that may come from strangers
signals      StopRequest: SIGINT and SIGTERM as a request; start_worker
workers      ordered_map: the same work on many things in several processes
arguments    HelpFormatter and the types of command lines
device       pick_device
memory       reuse_freed_memory
"""
