"""What every package uses: errors, files, processes, arguments.

errors       InputError, Stopped, one_line, run_script: how a script ends
files        atomic_write, lock_directory, read_json, write_json, remove_made, check_utterance_id
reading      open_regular, read_bytes, read_span, exists: files that may be missing, unreadable, or no files
untrusted    load_untrusted: PyTorch files that may be hostile
signals      StopRequest: SIGINT and SIGTERM as a request; start_worker, watch_launcher
workers      ordered_map: the same work on many things in several processes; call_all, in_parts
arguments    HelpFormatter and the types of command lines
device       pick_device, jobs_at_once
figures      line_style, legend_beside, save_figure: how figures look
memory       reuse_freed_memory
"""
